"""Networks that read what a codec stores, and the pixel-domain baselines they are measured against."""

from cdzoo.models.cresnet import cresnet39 as cresnet39
from cdzoo.models.cresnet import cresnet51 as cresnet51
from cdzoo.models.cresnet import cresnet72 as cresnet72
from cdzoo.models.fa_cresnet import fa_cresnet39 as fa_cresnet39
from cdzoo.models.rgb_resnet import resnet50 as resnet50
from cdzoo.models.rgb_resnet import resnet71 as resnet71
