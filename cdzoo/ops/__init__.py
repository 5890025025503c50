"""Operations and layers of the compressed domain."""

from cdzoo.ops.attention import ChannelAttention as ChannelAttention
from cdzoo.ops.attention import FeatureAdaptation as FeatureAdaptation
from cdzoo.ops.attention import FeatureEnhancement as FeatureEnhancement
