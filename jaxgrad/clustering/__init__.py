"""k-means in four metrics, exact and in streams, and how good a clustering is."""

from jaxgrad.clustering._elbow import Elbow as Elbow
from jaxgrad.clustering._elbow import elbow as elbow
from jaxgrad.clustering._k_means import KMeansResult as KMeansResult
from jaxgrad.clustering._k_means import assign as assign
from jaxgrad.clustering._k_means import k_means as k_means
from jaxgrad.clustering._passes import KMeansProgress as KMeansProgress
from jaxgrad.clustering._passes import KMeansStreamResult as KMeansStreamResult
from jaxgrad.clustering._passes import k_means_stream as k_means_stream
from jaxgrad.clustering._quality import cluster_inertia as cluster_inertia
from jaxgrad.clustering._quality import silhouette as silhouette
from jaxgrad.clustering._quality import simplified_silhouette as simplified_silhouette
from jaxgrad.clustering._state import KMeansMemory as KMeansMemory
from jaxgrad.clustering._state import KMeansSettings as KMeansSettings
from jaxgrad.clustering._state import KMeansState as KMeansState
from jaxgrad.clustering._streaming import k_means_init as k_means_init
from jaxgrad.clustering._streaming import k_means_update as k_means_update

__all__ = [
    "Elbow",
    "KMeansMemory",
    "KMeansProgress",
    "KMeansResult",
    "KMeansSettings",
    "KMeansState",
    "KMeansStreamResult",
    "assign",
    "cluster_inertia",
    "elbow",
    "k_means",
    "k_means_init",
    "k_means_stream",
    "k_means_update",
    "silhouette",
    "simplified_silhouette",
]
