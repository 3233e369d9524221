# The program, added when its first command is.
