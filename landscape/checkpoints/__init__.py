"""How weights come out of files and folders of every form, without executing any of it. Begin with `files.py`."""
