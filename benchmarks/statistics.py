"""What the guarantees cost in time: ``python benchmarks/statistics.py [--json OUT] [--mapie-rows N]``."""

import sys

if __name__ == "__main__":
    from statistics_times import main

    main()
else:
    # Where a script of this folder runs, Python looks here first for the standard library's module of the same name,
    # which torch's compiler imports: hand that one over.
    import sysconfig
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    spec = spec_from_file_location(__name__, Path(sysconfig.get_path("stdlib")) / "statistics.py")
    sys.modules[__name__] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
