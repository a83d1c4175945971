"""What everything stands on: errors, files, parameters, places, draws; it may use nothing else of components."""
