"""What a person sees: the plan, the progress, the result, the runs and the errors.

Layer 4; the modules import layer 0 and rich only.
"""
