import importlib
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules:
    REPOSITORY = "https://github.com/psic-tutorial/psic-tutorial"  # a fork changes this line
    clone = Path("psic").resolve()
    commands = [] if clone.is_dir() else [["git", "clone", "--quiet", "--depth", "1", REPOSITORY, str(clone)]]
    for command in [*commands, [sys.executable, str(clone / "install.py"), "--keep"]]:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr if done.returncode else "", sep="", end="")
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed. What is above says why. Mend it and run this cell again.")
    sys.path.insert(0, str(clone))
    importlib.invalidate_caches()
