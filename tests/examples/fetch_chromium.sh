#!/bin/sh
# A headless Chromium from Debian's packages, without root: `fetch_chromium.sh FOLDER` makes FOLDER/chromium.
set -eu
mkdir -p "$1/packages"
cd "$1/packages"
# It, and what it needs and this machine lacks.
apt-get download $(apt-get install --simulate --no-install-recommends chromium-headless-shell | awk '/^Inst/ {print $2}')
for package in *.deb; do dpkg-deb -x "$package" ..; done
cd ..
libraries=$(find "$PWD/usr/lib" -name '*.so*' -not -path "$PWD/usr/lib/chromium/*" -exec dirname {} + | sort -u | paste -sd:)
cat > chromium.partial <<SCRIPT
#!/bin/sh
LD_LIBRARY_PATH='$libraries' exec '$PWD/usr/lib/chromium/chromium-headless-shell' "\$@"
SCRIPT
chmod +x chromium.partial
./chromium.partial --version
mv chromium.partial chromium
