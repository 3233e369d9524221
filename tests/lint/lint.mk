# Layering and shell scripts.
dist_check_SCRIPTS = tests/lint/lint.sh tests/lint/shell.sh
TESTS += tests/lint/lint.sh tests/lint/shell.sh
