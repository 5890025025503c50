"""One engine that applies a codec or a network to any number of files, for the command line and Ray alike.

``cdzoo.classify`` is in ``classify.py``. It makes these calls: ``Networks`` chooses a network for each file (with
``networks.py``) and wraps it in a task, ``Classify`` (``classify_task.py``). ``engine.process`` prepares the files,
puts files of one task and one size into batches, and runs the task on each batch. ``cdzoo classify`` makes the same
calls. With Ray, the user gives the network: there is one ``Classify``, and no ``Networks``.
"""
