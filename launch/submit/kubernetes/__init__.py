from launch.submit.kubernetes.place import KubernetesPlace as KubernetesPlace
