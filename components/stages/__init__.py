"""The five stages that dvc.yaml runs, and the command line that all share; they may use registry and below."""
