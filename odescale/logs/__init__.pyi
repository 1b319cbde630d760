from odescale.logs.read import TrainingLog as TrainingLog
from odescale.logs.run_table import is_table as is_table
