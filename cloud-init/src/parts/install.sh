#!/bin/sh
# Fetches the agent with the machine's own role, and installs it if it is the one that was meant.
set -u
region='@REGION@'
url='@URL@'
metadata='@METADATA@'
sha256='@SHA256@'
target=/usr/local/bin/tpi-agent
seconds=600

say() { echo "tpi: $1" >&2; }
is_right() { [ -f "$1" ] && [ "$(sha256sum < "$1" | cut -d ' ' -f 1)" = "$sha256" ]; }
now() { cut -d . -f 1 /proc/uptime; }
give_up() {
  say "$1: powering off"
  rm -f "$target.new"
  systemctl --no-block start tpi-power-off.service || systemctl --no-block poweroff
  exit 1
}

# Keys and tokens go through standard input: everybody on the machine can read arguments.
with_curl() {
  token=$(curl -fsS -m 5 --noproxy '*' -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 300' \
    "$metadata/latest/api/token") || return 1
  role=$(ask '') && keys=$(ask "$role") || return 1
  printf 'user = "%s:%s"\nheader = "x-amz-security-token: %s"\n' \
    "$(key AccessKeyId)" "$(key SecretAccessKey)" "$(key Token)" |
    curl -fsS -m 300 --connect-timeout 10 -K - --aws-sigv4 "aws:amz:$region:s3" \
      -H 'x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855' \
      -o "$1" "$url"
}
ask() {
  printf 'header = "X-aws-ec2-metadata-token: %s"\n' "$token" |
    curl -fsS -m 5 --noproxy '*' -K - "$metadata/latest/meta-data/iam/security-credentials/$1"
}
key() { printf '%s' "$keys" | tr -d '\n' | sed -n "s/.*\"$1\" *: *\"\\([^\"]*\\)\".*/\\1/p"; }

with_python() {
  for python in python3 /usr/libexec/platform-python; do
    if command -v "$python" > /dev/null; then
      timeout 300 "$python" /usr/local/lib/tpi/fetch.py "$metadata" "${1-}" "${2-}" "${3-}"
      return
    fi
  done
  return 127
}
fetch() {
  with_python "$region" "$url" "$1"
  code=$?
  if [ "$code" = 127 ]; then
    with_curl "$1"
    code=$?
  fi
  return "$code"
}

if is_right "$target"; then exit 0; fi
end=$(($(now) + seconds))
pause=1
wrong=0
while :; do
  rm -f "$target.new"
  if fetch "$target.new"; then
    if is_right "$target.new"; then break; fi
    wrong=$((wrong + 1))
    say "what was fetched is not the agent that was meant"
    if [ "$wrong" -ge 3 ]; then
      # Another machine would fare no better: this one takes its place in the group with it.
      with_python || say "this machine may be replaced"
      give_up "there is no right agent"
    fi
  fi
  if [ $(($(now) + pause)) -ge "$end" ]; then give_up "the agent could not be fetched"; fi
  sleep "$pause"
  pause=$((pause * 2))
  if [ "$pause" -gt 20 ]; then pause=20; fi
done
if ! chmod 755 "$target.new" || ! mv -f "$target.new" "$target"; then
  give_up "the agent could not be installed"
fi
say "the agent is installed"
