#!/bin/sh
# In the place of sshd's program: it answers every question as the real one does, and ends where it is to listen.
for word; do
    case $word in
    -[tTiRVG]) exec /usr/sbin/sshd "$@" ;;
    esac
done
exit 1
