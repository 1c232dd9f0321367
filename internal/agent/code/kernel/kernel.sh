# Runs bash for a code context. The agent sends commands as the lines of an interactive shell, because only such a one
# drops what it is doing at an interrupt, or at an error like ${x:?}, and goes on with the next line.
PS1= PS2= PS4='+ '; set +o history +H; unset HISTFILE MAIL; unset -f command_not_found_handle
trap 'exit 143' TERM
printf '16\n{"type":"ready"}' >&4
