# A guest's first process: an overlay over ROOT, seen by nobody else, and a network of its own. It ends when its
# standard input does, and everything in the guest with it.
set -e
read -r pid rest </proc/self/stat
mount -t tmpfs -o mode=755 matrix "$AT"
mkdir "$AT/upper" "$AT/work" "$AT/root"
mount -t overlay -o "lowerdir=$ROOT,upperdir=$AT/upper,workdir=$AT/work" matrix "$AT/root"
cd "$AT/root"
touch usr/bin/keypair-agent
mount --bind "$AGENT" usr/bin/keypair-agent
# Another OpenSSH, where one is named: its programs in place of the root file system's, and those that they start (they know
# the paths of their prefix).
if [ -n "$OPENSSH" ]; then
    mkdir -p ".$OPENSSH"
    mount --bind "$OPENSSH" ".$OPENSSH"
    for program in sbin/sshd bin/ssh bin/ssh-keygen; do
        rm -f "usr/$program"
        cp "$OPENSSH/$program" "usr/$program"
    done
fi
mount -t proc proc proc
mount -t tmpfs -o mode=755 dev dev
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=1777 tmp tmp
# What the machine's own root has in his shell's files is not every guest's.
mount -t tmpfs -o mode=700 root root
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty dev/
mkdir dev/pts
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
mkdir run/sshd
# A network within the network: the outer one says how small the inner one's table of connections is. A reader of
# /proc/net/tcp pays for all of the table, the machine's if it has none of its own (Linux before 6.1).
echo 256 2>/dev/null >/proc/sys/net/ipv4/tcp_child_ehash_entries || true
exec unshare --net sh -ec '
    ip link set lo up
    ip addr add 10.99.0.1/16 dev lo
    ip addr add 10.1.2.3/32 dev lo
    ip addr add 198.51.100.1/24 dev lo
    # Any address of the prefix is ours to come from.
    ip -6 addr add fd99::1/64 dev lo nodad
    ip -6 route add local fd99::/64 dev lo
    echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind
    # As the first process it is the parent of every daemon: the shell reaps them while it waits.
    exec chroot . /bin/sh -c "echo $0; exec 3<&0; cat <&3 >/dev/null & wait \$!"
' "$pid"
