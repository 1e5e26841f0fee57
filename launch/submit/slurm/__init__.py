"""Jobs of Slurm."""

from launch.submit.slurm.place import SlurmPlace as SlurmPlace
