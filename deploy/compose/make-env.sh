#!/bin/sh
# Writes random passwords of the try-out into .env beside compose.yaml, once; the file stays on this machine.
set -eu
env=$(dirname "$0")/../../.env
if [ -e "$env" ]; then
  echo "$env is there already; remove it, and the volumes with it, for new passwords" >&2
  exit 1
fi
random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
umask 077
cat > "$env" <<END
TIGHTFIT_TRYOUT_DATABASE_PASSWORD=$(random 16)
TIGHTFIT_TRYOUT_S3_ACCESS_KEY=$(random 10)
TIGHTFIT_TRYOUT_S3_SECRET_KEY=$(random 20)
TIGHTFIT_TRYOUT_GRAFANA_PASSWORD=$(random 12)
END
echo "wrote $env"
