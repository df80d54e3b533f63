"""Is it right, and is it better than the last one?"""
