from odescale.systems.spectrum import Spectrum as Spectrum
from odescale.systems.spectrum import isotropic as isotropic
from odescale.systems.spectrum import listed as listed
from odescale.systems.spectrum import power_law as power_law
from odescale.systems.spectrum import source_overlaps as source_overlaps
