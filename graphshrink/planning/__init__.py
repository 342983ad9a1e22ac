"""The planner: given a budget of latency, it chooses what each region of a network becomes.

- :mod:`.sites` finds the regions that can be replaced.
- :mod:`.candidates` has a file for each kind of replacement; the fits need calibration samples and no labels.
- :mod:`.quality` scores networks by their outputs on samples that no fit has seen.
- :mod:`.latency` times regions, and keeps the times in a file.
- :mod:`.search` finds the best sum of costs and losses; :mod:`.steps` goes on from there by true scores.
- :mod:`.plan` is the result, a file; :mod:`.planner` makes it.
"""
