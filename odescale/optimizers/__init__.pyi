from odescale.optimizers.adam import SGD as SGD
from odescale.optimizers.adam import Adam as Adam
from odescale.optimizers.muon import Muon as Muon
from odescale.optimizers.signs import Lion as Lion
from odescale.optimizers.signs import Sign as Sign
