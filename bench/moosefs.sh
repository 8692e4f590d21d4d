#!/bin/bash
# Starts (or stops) a MooseFS cluster on this machine from Debian's packages: 1 master, N chunkservers, goal G, FUSE mount
# on DIR/mnt.
# usage: moosefs.sh start DIR [N=3] [GOAL=2] | stop DIR
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
# MooseFS refuses loopback addresses: everything runs in a network namespace of its own, on an address of its lo
IP=10.77.0.1; NS="nsenter --net=/run/netns/mfs"
ip netns list | grep -qw mfs || { ip netns add mfs; $NS ip link set lo up; $NS ip addr add $IP/32 dev lo; }
cmd=${1:?start or stop}; D=$(mkdir -p "${2:?a folder}"; realpath "${2:?a folder}"); N=${3:-3}; G=${4:-2}
if [ "$cmd" = start ]; then
  mkdir -p $D/master $D/mnt; cp /var/lib/mfs/metadata.mfs.empty $D/master/metadata.mfs 2>/dev/null || printf 'MFSM NEW' > $D/master/metadata.mfs
  cat > $D/mfsmaster.cfg <<X
WORKING_USER=root
WORKING_GROUP=root
DATA_PATH=$D/master
EXPORTS_FILENAME=$D/exports.cfg
MATOCS_LISTEN_HOST=$IP
MATOCL_LISTEN_HOST=$IP
MATOML_LISTEN_HOST=$IP
MATOCS_LISTEN_PORT=19420
MATOCL_LISTEN_PORT=19421
MATOML_LISTEN_PORT=19419
X
  echo '* / rw,alldirs,admin,maproot=0:0' > $D/exports.cfg
  $NS mfsmaster -c $D/mfsmaster.cfg start
  for i in $(seq 1 $N); do
    mkdir -p $D/cs$i $D/disk$i; echo "$D/disk$i" > $D/hdd$i.cfg
    cat > $D/cs$i.cfg <<X
WORKING_USER=root
WORKING_GROUP=root
DATA_PATH=$D/cs$i
HDD_CONF_FILENAME=$D/hdd$i.cfg
HDD_LEAVE_SPACE_DEFAULT=256MiB
MASTER_HOST=$IP
MASTER_PORT=19420
BIND_HOST=$IP
CSSERV_LISTEN_HOST=$IP
CSSERV_LISTEN_PORT=$((19422+i))
X
    $NS mfschunkserver -c $D/cs$i.cfg start
  done
  sleep 3
  $NS mfsmount $D/mnt -H $IP -P 19421 -o allow_other
  sleep 2; $NS mfssetgoal -r $G $D/mnt >/dev/null; df -h $D/mnt | tail -1
else
  fusermount3 -u $D/mnt || umount -l $D/mnt || true
  for c in $D/cs*.cfg; do $NS mfschunkserver -c $c stop || true; done
  $NS mfsmaster -c $D/mfsmaster.cfg stop || true
  ip netns del mfs || true
fi
