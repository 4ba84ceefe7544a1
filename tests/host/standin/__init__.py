"""A stand-in for AUTOMATIC1111's `modules`: what the extension touches, behaving as the real host was seen to.

Small and written for these tests; the same contract cases run on it and on a real WebUI, which is what keeps it true.
"""
