"""Linear attention that learns regression in context: from the residual stream to the ODE of its layer strengths."""
