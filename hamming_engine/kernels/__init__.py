"""All compiled code.

A kernel takes arrays and integers, writes into arrays that it was given, and checks nothing: the
doors (``codes``, ``indexes``, ``collection``) have done that. Files here hold loops over scalars
and over the vector values of ``lanes`` and ``columns``; what is needed to launch them over threads
is in ``launch``, other LLVM intrinsics are in ``intrinsics``, and ``methods`` decides which scan a
processor runs.

Every parallel kernel comes as a pair: a *cell*, a serial function that does one share of the work
and owns its part of the output, and a driver that runs cells under ``prange``. The cell alone
serves small work and forked processes.
"""
