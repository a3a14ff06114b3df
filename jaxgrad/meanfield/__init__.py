"""Mean-field theory of wide networks: what an activation and an initialization do to signals and gradients."""

from jaxgrad.meanfield._critical import CriticalPoint as CriticalPoint
from jaxgrad.meanfield._critical import critical_point as critical_point
from jaxgrad.meanfield._fixed_points import chi as chi
from jaxgrad.meanfield._fixed_points import fixed_point as fixed_point
from jaxgrad.meanfield._kernels import variance_map as variance_map

__all__ = ["CriticalPoint", "chi", "critical_point", "fixed_point", "variance_map"]
