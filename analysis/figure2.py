"""Figure 2 of the paper: test loss and accuracy of each rule in activity recognition, one panel a result file.

    python analysis/figure2.py fig2a.h5 fig2b.h5 -o figures

writes figure2a, figure2b, ... and all together as figure2, each as PNG and PDF. Panels come in order of attackers.
"""

from curves import main
from results import command

if __name__ == "__main__":
    command(lambda: main("figure2", __doc__))
