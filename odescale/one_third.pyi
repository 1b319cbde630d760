from odescale.analysis.peaked.escapes import compare_escapes as compare_escapes
from odescale.analysis.peaked.escapes import time_to_loss as time_to_loss
from odescale.analysis.peaked.one_third import PeakedLaw as PeakedLaw
from odescale.analysis.peaked.one_third import predict_law as predict_law
from odescale.training.toy import toy_layer as toy_layer
from odescale.training.toy import toy_theory as toy_theory
