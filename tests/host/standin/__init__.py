"""A stand-in for AUTOMATIC1111's `modules`: the parts that the extension uses, with the real host's behaviour.

It is small and written for these tests. The same contract cases run on it and on a real WebUI, so a difference fails.
"""
