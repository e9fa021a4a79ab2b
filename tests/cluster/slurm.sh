#!/usr/bin/env bash
# A Slurm cluster of two nodes with one core each on this machine: slurm.sh start DIR | slurmd N | stop DIR
# Needs root and Debian's slurm-wlm and munge.
set -euo pipefail
verb=$1 dir=$2 host=$(hostname -s)
case $verb in
stop)
  for pid in "$dir"/{n1,n2,ctld}.pid; do [[ ! -f $pid ]] || kill "$(cat "$pid")" || true; done
  ;;
slurmd)
  slurmd -N "$dir"
  ;;
start)
  mkdir -p "$dir"/{ctld,n1,n2} /etc/slurm /run/munge
  for name in "$host" n1 n2; do getent hosts "$name" >/dev/null || echo "127.0.0.1 $name" >>/etc/hosts; done
  [[ -s /etc/munge/munge.key ]] || head -c 1024 /dev/urandom >/etc/munge/munge.key
  chown munge: /etc/munge/munge.key /run/munge
  chmod 400 /etc/munge/munge.key
  pgrep -x munged >/dev/null || runuser -u munge -- /usr/sbin/munged
  cat >/etc/slurm/slurm.conf <<CONF
ClusterName=test
SlurmctldHost=$host
AuthType=auth/munge
SlurmUser=root
StateSaveLocation=$dir/ctld
SlurmdSpoolDir=$dir/%n
SlurmctldPidFile=$dir/ctld.pid
SlurmdPidFile=$dir/%n.pid
SlurmctldLogFile=$dir/ctld.log
SlurmdLogFile=$dir/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
MpiDefault=none
KillWait=20
NodeName=n[1-2] NodeHostname=$host Port=[17001-17002] CPUs=1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  slurmctld
  slurmd -N n1
  slurmd -N n2
  for _ in $(seq 60); do
    [[ $(sinfo -h -o '%D %t' 2>/dev/null) == "2 idle" ]] && exit 0
    sleep 0.5
  done
  echo "the nodes did not come up; see $dir/*.log" >&2
  exit 1
  ;;
esac
