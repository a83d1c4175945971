"""When and where the stages run: order, retries, workers, schedules; and the acts that are not files."""
