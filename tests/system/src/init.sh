#!/bin/busybox sh
# The machine's first process: makes an ordinary place of it, runs /script, says with which code that ended, switches off.
/bin/busybox mkdir -p /sbin /usr/bin
/bin/busybox --install -s /usr/bin
/bin/busybox ln -s busybox /bin/sh
export PATH=/bin:/usr/bin LD_LIBRARY_PATH=/lib HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
end() {
    echo "system: ended with $1"
    sync
    poweroff -f
}
while read -r module; do
    insmod "/modules/$module.ko" || end 125
done < /modules/order
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    # The emulator's own network: the host is 10.0.2.2, as far as its 127.0.0.1 goes.
    ip address add 10.0.2.15/24 dev eth0
    ip link set eth0 up
fi
/script </dev/null
end $?
