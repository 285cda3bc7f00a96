"Every test file runs with what `import ppcls_nb` sets for the process, whatever it imports first."
import ppcls_nb  # before paddle: threads, MKL's path, memory
