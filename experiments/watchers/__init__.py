"""How much longer does a training take while one of those that watch it fails?"""
