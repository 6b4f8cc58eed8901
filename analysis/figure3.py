"""Figure 3 of the paper: test loss and accuracy of each rule in the MNIST group of digit classification.

    python analysis/figure3.py fig3-4a.h5 fig3-4b.h5 -o figures

writes figure3a, figure3b, ... and all together as figure3, each as PNG and PDF. Panels come in order of attackers.
"""

from curves import main
from results import command

if __name__ == "__main__":
    command(lambda: main("figure3", __doc__, group=0, whose="MNIST group"))
