one_sgd_step = mean_gradient = softmax_average = population_loss = layer_adjoint = assembled = None
softmax_ratio = query_average = finite_context = None
