"""`torchlstm qualify`: which of the CUDA engine's programs are right on this GPU, and faster than torch operations?"""
