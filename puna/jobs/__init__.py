"""The verbs: each file composes the other folders into one job, with its folder, progress and report."""
