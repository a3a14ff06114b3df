"""From a loss to a diagnosis: what is wrong, which layer is to blame, and which fix works."""

from jaxgrad.diagnosis._activations import ActivationPCA as ActivationPCA
from jaxgrad.diagnosis._activations import activation_pca as activation_pca
from jaxgrad.diagnosis._explain import explain as explain
from jaxgrad.diagnosis._groups import GradientGroups as GradientGroups
from jaxgrad.diagnosis._groups import group_by_gradient as group_by_gradient
from jaxgrad.diagnosis._pictures import plot_activations as plot_activations
from jaxgrad.diagnosis._pictures import plot_groups as plot_groups
from jaxgrad.diagnosis._pictures import plot_trajectory as plot_trajectory
from jaxgrad.diagnosis._report import BlockStatistics as BlockStatistics
from jaxgrad.diagnosis._report import Contribution as Contribution
from jaxgrad.diagnosis._report import Finding as Finding
from jaxgrad.diagnosis._report import Histogram as Histogram
from jaxgrad.diagnosis._report import LayerStatistics as LayerStatistics
from jaxgrad.diagnosis._report import NonFinite as NonFinite
from jaxgrad.diagnosis._report import Remedy as Remedy
from jaxgrad.diagnosis._report import Report as Report
from jaxgrad.diagnosis._report import Spectrum as Spectrum
from jaxgrad.diagnosis._run import RunDiagnosis as RunDiagnosis
from jaxgrad.diagnosis._run import diagnose_run as diagnose_run
from jaxgrad.diagnosis._run_changes import Change as Change
from jaxgrad.diagnosis._run_clipping import Clipping as Clipping
from jaxgrad.diagnosis._signatures import Signatures as Signatures
from jaxgrad.diagnosis._signatures import layer_signatures as layer_signatures
from jaxgrad.diagnosis._signatures import unit_signatures as unit_signatures
from jaxgrad.diagnosis._surface import LossSurface as LossSurface
from jaxgrad.diagnosis._surface import trajectory_surface as trajectory_surface
from jaxgrad.diagnosis._trajectory import Trajectory as Trajectory
from jaxgrad.diagnosis._trajectory import trajectory_pca as trajectory_pca
from jaxgrad.diagnosis._trajectory import trajectory_point as trajectory_point

__all__ = [
    "ActivationPCA",
    "BlockStatistics",
    "Change",
    "Clipping",
    "Contribution",
    "Finding",
    "GradientGroups",
    "Histogram",
    "LayerStatistics",
    "LossSurface",
    "NonFinite",
    "Remedy",
    "Report",
    "RunDiagnosis",
    "Signatures",
    "Spectrum",
    "Trajectory",
    "activation_pca",
    "diagnose_run",
    "explain",
    "group_by_gradient",
    "layer_signatures",
    "plot_activations",
    "plot_groups",
    "plot_trajectory",
    "trajectory_pca",
    "trajectory_point",
    "trajectory_surface",
    "unit_signatures",
]
