"""`plait doctor`: what is installed, on what machine, what is out of date or broken, and what to type.

`plait_doctor.examination` is what a program calls: ``examine``, ``sound``, ``document``. Importing it imports no torch;
torch is imported in a process of its own.
"""
