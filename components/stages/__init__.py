"""The five stages that dvc.yaml runs, and the door that each is run through; they may use registry and below."""
