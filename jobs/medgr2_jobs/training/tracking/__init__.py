"""Who follows the figures of a training: TensorBoard files in the workspace, MLflow and W&B where the spec says so."""
