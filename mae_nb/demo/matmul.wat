;; C = A B for 32-bit floats, by SIMD: one block of 4 rows x 8 columns of C at a time, whose 32 sums stay in 8 registers.
;; A is (M, K), B is (K, N), C is (M, N), all row by row, at byte addresses of one memory that the page brings along.
;; M must be a multiple of 4 and N of 8; K is any number.   `python tools/wasm.py` makes matmul.wasm of this file.
(module
  (import "page" "memory" (memory 1))
  (func (export "multiply")
    (param $a i32) (param $b i32) (param $c i32) (param $M i32) (param $K i32) (param $N i32)
    (local $m i32) (local $n i32) (local $k i32)         ;; rows and columns done, steps of the sum left
    (local $row i32) (local $line i32)                   ;; bytes of a row of A; of a row of B and of C
    (local $x i32) (local $y i32) (local $z i32)         ;; where we are in A, B, C
    (local $left v128) (local $right v128) (local $t v128)  ;; 8 numbers of B; one of A, four times
    (local $s0 v128) (local $s1 v128) (local $s2 v128) (local $s3 v128)
    (local $s4 v128) (local $s5 v128) (local $s6 v128) (local $s7 v128)
    (local.set $row (i32.shl (local.get $K) (i32.const 2)))
    (local.set $line (i32.shl (local.get $N) (i32.const 2)))
    (loop $rows
      (local.set $n (i32.const 0))
      (loop $columns
        (local.set $x (local.get $a))
        (local.set $y (i32.add (local.get $b) (i32.shl (local.get $n) (i32.const 2))))
        (local.set $z (i32.add (local.get $c) (i32.shl (local.get $n) (i32.const 2))))
        (local.set $s0 (v128.const i32x4 0 0 0 0)) (local.set $s1 (local.get $s0))
        (local.set $s2 (local.get $s0)) (local.set $s3 (local.get $s0))
        (local.set $s4 (local.get $s0)) (local.set $s5 (local.get $s0))
        (local.set $s6 (local.get $s0)) (local.set $s7 (local.get $s0))
        (local.set $k (local.get $K))
        (loop $sum
          (local.set $left (v128.load (local.get $y)))
          (local.set $right (v128.load offset=16 (local.get $y)))
          (local.set $t (v128.load32_splat (local.get $x)))  ;; row 0
          (local.set $s0 (f32x4.add (local.get $s0) (f32x4.mul (local.get $t) (local.get $left))))
          (local.set $s1 (f32x4.add (local.get $s1) (f32x4.mul (local.get $t) (local.get $right))))
          (local.set $t (v128.load32_splat (i32.add (local.get $x) (local.get $row))))  ;; row 1
          (local.set $s2 (f32x4.add (local.get $s2) (f32x4.mul (local.get $t) (local.get $left))))
          (local.set $s3 (f32x4.add (local.get $s3) (f32x4.mul (local.get $t) (local.get $right))))
          (local.set $t (v128.load32_splat (i32.add (local.get $x) (i32.shl (local.get $row) (i32.const 1)))))  ;; row 2
          (local.set $s4 (f32x4.add (local.get $s4) (f32x4.mul (local.get $t) (local.get $left))))
          (local.set $s5 (f32x4.add (local.get $s5) (f32x4.mul (local.get $t) (local.get $right))))
          (local.set $t (v128.load32_splat (i32.add (local.get $x) (i32.mul (local.get $row) (i32.const 3)))))  ;; row 3
          (local.set $s6 (f32x4.add (local.get $s6) (f32x4.mul (local.get $t) (local.get $left))))
          (local.set $s7 (f32x4.add (local.get $s7) (f32x4.mul (local.get $t) (local.get $right))))
          (local.set $x (i32.add (local.get $x) (i32.const 4)))
          (local.set $y (i32.add (local.get $y) (local.get $line)))
          (br_if $sum (local.tee $k (i32.sub (local.get $k) (i32.const 1)))))
        (v128.store (local.get $z) (local.get $s0))
        (v128.store offset=16 (local.get $z) (local.get $s1))
        (v128.store (local.tee $z (i32.add (local.get $z) (local.get $line))) (local.get $s2))
        (v128.store offset=16 (local.get $z) (local.get $s3))
        (v128.store (local.tee $z (i32.add (local.get $z) (local.get $line))) (local.get $s4))
        (v128.store offset=16 (local.get $z) (local.get $s5))
        (v128.store (local.tee $z (i32.add (local.get $z) (local.get $line))) (local.get $s6))
        (v128.store offset=16 (local.get $z) (local.get $s7))
        (br_if $columns (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 8))) (local.get $N))))
      (local.set $a (i32.add (local.get $a) (i32.shl (local.get $row) (i32.const 2))))
      (local.set $c (i32.add (local.get $c) (i32.shl (local.get $line) (i32.const 2))))
      (br_if $rows (i32.lt_u (local.tee $m (i32.add (local.get $m) (i32.const 4))) (local.get $M))))))
