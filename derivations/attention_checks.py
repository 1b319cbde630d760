one_sgd_step = mean_gradient = softmax_average = population_loss = layer_adjoint = assembled = None
