"""Figure 4 of the paper: test loss and accuracy of each rule in the synthetic group of digit classification.

    python analysis/figure4.py fig3-4a.h5 fig3-4b.h5 -o figures

writes figure4a, figure4b, ... and all together as figure4, each as PNG and PDF. Panels come in order of attackers.
"""

from curves import main
from results import command

if __name__ == "__main__":
    command(lambda: main("figure4", __doc__, group=1, whose="synthetic group"))
