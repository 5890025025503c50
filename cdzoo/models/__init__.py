"""Networks that read what a codec stores, and the pixel-domain baselines they are measured against."""

from cdzoo.models.cresnet import cresnet39 as cresnet39
from cdzoo.models.cresnet import cResNet39_Weights as cResNet39_Weights
from cdzoo.models.cresnet import cresnet51 as cresnet51
from cdzoo.models.cresnet import cResNet51_Weights as cResNet51_Weights
from cdzoo.models.cresnet import cresnet72 as cresnet72
from cdzoo.models.cresnet import cResNet72_Weights as cResNet72_Weights
from cdzoo.models.fa_cresnet import FA_cResNet39_Weights as FA_cResNet39_Weights
from cdzoo.models.fa_cresnet import fa_cresnet39 as fa_cresnet39
from cdzoo.models.jpeg_resnet import JPEGResNet18_Weights as JPEGResNet18_Weights
from cdzoo.models.jpeg_resnet import JPEGResNet50_Weights as JPEGResNet50_Weights
from cdzoo.models.jpeg_resnet import JPEGResNetSmall_Weights as JPEGResNetSmall_Weights
from cdzoo.models.jpeg_resnet import jpeg_resnet18 as jpeg_resnet18
from cdzoo.models.jpeg_resnet import jpeg_resnet50 as jpeg_resnet50
from cdzoo.models.jpeg_resnet import jpeg_resnet_small as jpeg_resnet_small
from cdzoo.models.rgb_resnet import ResNet50_Weights as ResNet50_Weights
from cdzoo.models.rgb_resnet import ResNet71_Weights as ResNet71_Weights
from cdzoo.models.rgb_resnet import resnet50 as resnet50
from cdzoo.models.rgb_resnet import resnet71 as resnet71
