"""All compiled code.

A kernel takes arrays and integers, writes into arrays that it was given, and checks nothing: the
doors (``codes``, ``indexes``, ``collection``) have done that. Files here hold scalar loops; what is
needed to launch them over threads is in ``launch``, the few LLVM intrinsics are in ``intrinsics``.

Every parallel kernel comes as a pair: a *cell*, a serial function that does one share of the work
and owns its part of the output, and a driver that runs cells under ``prange``. The cell alone
serves small work and forked processes.
"""
