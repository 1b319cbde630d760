from odescale.analysis.two_tokens import two_token_loss as two_token_loss
from odescale.analysis.two_tokens import two_token_minima as two_token_minima
from odescale.analysis.two_tokens import two_token_transition as two_token_transition
