"""What a person types, a file for each group of commands: nothing but arguments and tables.

It may use all other rooms.
"""
