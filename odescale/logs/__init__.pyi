from odescale.logs.read import TrainingLog as TrainingLog
